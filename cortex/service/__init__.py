"""What any trio service needs: serving, the HTTP edge, single flight, polling, metrics, logs.

Owns no state of the application and does not know the word "model".
"""
