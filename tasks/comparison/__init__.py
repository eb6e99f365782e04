"""Is A different from B, and what do a network's features add over traditional methods?"""
