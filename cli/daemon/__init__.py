"""The server side: settings, the composition root, the migrations. Tenants' commands never load it."""
