"""Which version is this? Said here, and not asked of the installed package: a source folder may not be installed."""

VERSION = "0.1.0"
