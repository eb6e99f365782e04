"""What a network that reads sequences has learned: attention, recurrent state and memory."""
