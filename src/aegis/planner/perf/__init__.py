"""What one operation takes: by measured tables (current rules, guide rules) or by a fitted formula."""
