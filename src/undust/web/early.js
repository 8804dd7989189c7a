"use strict"; // before the page is laid out, so that nothing moves later
document.documentElement.classList.add("js");
try {
  new Intl.NumberFormat(navigator.language);
} catch {
  // Chromium with LANG=C has "en-US@posix", with which uPlot cannot format numbers.
  Object.defineProperty(navigator, "language", { value: "en" });
}
