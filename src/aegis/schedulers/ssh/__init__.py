"""The far end of an ssh connection as a place for a scheduler's commands and files."""

from aegis.schedulers.ssh.transport import Ssh, connect

__all__ = ["Ssh", "connect"]
