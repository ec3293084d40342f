"""Used by every command of the laboratory: timing, memory, tables, files and names."""
