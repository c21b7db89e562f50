"""What the papers share. A student reads it, but need not read running/ and demo/."""
