"""Did this model forget, and at what price?"""
