"""What a site can find out about itself before it takes part: machine, kit, memory, disk, data."""
