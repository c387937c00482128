"""`jaxrl bench`: how fast this machine trains, and how near that is to what it could."""
