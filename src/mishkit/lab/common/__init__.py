"""What every command of the laboratory uses: timing, memory, tables, files and names."""
