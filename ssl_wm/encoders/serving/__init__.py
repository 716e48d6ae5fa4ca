"""The embedding API: accounts, limits, decoding, batching, defences and the HTTP routes.

``settings.py`` and ``defences.py`` need nothing but pydantic and torch; ``app.py`` and
``logs.py`` need the extra ``[serve]``. ``ssl_wm.encoders.serve`` runs it all.
"""
