"""The stager: copies trees of files to many nodes over TCP, without MPI.

Standard library only, for any Python >= 3.9. `staging/archive.py` packs it into one file. Its modules import each other
relatively: in the file this package is `aegis_stager`.

    python stager.pyz head LIST --nodes a,b,c [--verify | --clean]     where the sources can be read; prints JSON lines
    python stager.pyz receive --head ADDRESS:PORT [--node NAME]        on every node

The head reads each source once. Its blocks go down a chain of nodes: each passes a frame on while it hashes and writes it.
A connection of every node to the head carries what to do, and what came of it. So the head knows at once who is lost, and
ties the chain together again around it; frames say what they hold, so nodes may miss some and get some twice. When the end
of the stream has come, nodes that lack blocks say so, and a shorter chain brings those.
"""
