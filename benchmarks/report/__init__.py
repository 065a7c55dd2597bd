"""What is made of the results: text (`text`), a file of JSON and what it compares with (`saved`, `compare`), and a page
of HTML or PNGs with plots (`html`, `figures`)."""
