"""The models that Aegis knows how to serve, in the format of vec-inf's `models.yaml`.

entry         what a file may say of a model
files         one file, with the place of everything wrong in it
environment   vec-inf's environment.yaml: what a site says of all its models
lookup        which files are read, and how they lie upon each other
arguments     engine arguments, variables and binds as they are written on a command line
launch        an entry and options -> a deployment
"""
