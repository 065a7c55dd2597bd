"""How members talk to each other: requests and streams on the port of the backup service."""
