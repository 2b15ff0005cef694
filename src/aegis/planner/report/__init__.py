"""How a plan is shown: tables, a terminal plot, a picture, one page of HTML, CSV and JSON."""
