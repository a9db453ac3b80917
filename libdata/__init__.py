"""What comes in: data sets built in, in files, folders and behind import paths; TFRecords, released files."""

import libcli  # noqa: F401  (first: a Ctrl-C while libraries load is one line)
