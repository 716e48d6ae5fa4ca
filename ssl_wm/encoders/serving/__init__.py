"""The embedding API: accounts, limits, decoding, batching, defences and the HTTP routes.

``settings.py`` and ``defences.py`` need nothing but pydantic and torch; decoding, routes and
logs need the extra ``[serve]``. ``ssl_wm.encoders.serve`` runs it all.
"""
