"""What a fleet is doing, for people: the state behind `/overview`, the page `/ui` and `aegis top`."""
