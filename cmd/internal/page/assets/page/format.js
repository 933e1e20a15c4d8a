// How figures are written. Everywhere a dot is the decimal point and a comma parts thousands.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const prefixes = ["", "k", "M", "G", "T", "P"];
const thin = "\u202f"; // narrow no-break space

// count is an exact number: "12,345".
export const count = (n) => whole.format(n);

// short has three digits and a prefix: "1.24 M".
export function short(n) {
  let i = 0;
  for (; n >= 999.5 && i < prefixes.length - 1; i++) n /= 1000;
  const digits = n >= 99.95 || n === 0 || (i === 0 && n >= 10) ? 0 : n >= 9.995 || i === 0 ? 1 : 2;
  return prefixes[i] ? n.toFixed(digits) + thin + prefixes[i] : n.toFixed(digits);
}

// rate is a number a second: exact while it is readable.
export function rate(n) {
  if (n === 0 || n >= 100) return n < 1e6 ? count(n) : short(n);
  return n.toFixed(1);
}

// present is how many there are now, total how many there were since the start: exact while there is room.
export const present = (n) => (n < 1e6 ? count(n) : short(n));
export const total = (n) => (n < 1e7 ? count(n) : short(n));

// span is how long something took, or ago it was: "12 s", "3 min", "5 h", "12 d".
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return s + thin + "s";
  if (s < 3600) return Math.floor(s / 60) + thin + "min";
  if (s < 48 * 3600) return Math.floor(s / 3600) + thin + "h";
  return Math.floor(s / 86400) + thin + "d";
}

// clock is the time of day of a Unix time in seconds.
export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

// plural is a number with its noun.
export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
