"""How fast this machine trains, and how near that is to what it could."""
