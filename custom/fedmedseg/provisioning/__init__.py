"""What a startup kit holds, how it is made safe by default, and how it is shown to be so still."""
