"""What a row of a table changes of a script: one small file each."""
