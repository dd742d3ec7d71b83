// Opened from the file system, a page may not read its neighbours, so search shows titles without excerpts there.
if (window.location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
