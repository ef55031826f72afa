"""Everything with a widget; nothing else imports it."""
