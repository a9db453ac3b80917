"""What comes in: data sets built in, in files, folders and behind import paths; TFRecords, released files."""
