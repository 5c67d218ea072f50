"""One file a format: what each of them opens is a Reader (see reader.py)."""
