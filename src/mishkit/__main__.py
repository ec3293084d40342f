"""`python -m mishkit`."""

from mishkit_cli import main

if __name__ == "__main__":
    main()
