// Sets the theme before anything is drawn: "light", "dark", or "" for the system's.
(() => {
  const chosen = localStorage.getItem("stagetrace-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
})();
