// Applies the saved theme before the first paint. A classic script on purpose: modules run too late and the page would flash.
{
  const saved = localStorage.getItem("greenroom-theme");
  if (saved === "light" || saved === "dark") document.documentElement.dataset.theme = saved;
}
