// Numbers, sizes, durations, money and times for people.
export const count = (n) => (n == null ? "–" : n.toLocaleString("en"));

export function number(value) {
  if (typeof value !== "number") return value == null ? "–" : String(value);
  if (Number.isInteger(value)) return count(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : value.toFixed(size < 10 ? 4 : 2);
}

export function bytes(n) {
  if (!n) return n === 0 ? "0 B" : "–";
  const unit = Math.min(4, Math.floor(Math.log10(n) / 3));
  const value = n / 1000 ** unit;
  return `${value >= 100 || !unit ? Math.round(value) : value.toFixed(1)}\u00a0${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

export function ms(value) {
  if (value == null) return "–";
  if (value === 0) return "0\u00a0ms";
  if (value < 1) return value < 0.01 ? "<\u00a00.01\u00a0ms" : `${value.toFixed(2)}\u00a0ms`;
  return value < 100 ? `${value.toFixed(1)}\u00a0ms` : value < 10_000 ? `${Math.round(value)}\u00a0ms` : `${(value / 1000).toFixed(1)}\u00a0s`;
}

export function money(value) {
  if (value == null) return "–";
  if (value && value < 0.01) return "<\u00a0$0.01";
  if (!value) return "$0";
  return `$${value.toFixed(2)}`;
}

export const share = (value, digits = 1) => (value == null ? "–" : `${(100 * value).toFixed(digits)} %`);

const STEPS = [["year", 31_536_000], ["month", 2_592_000], ["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });

export function ago(at, now = Date.now()) {
  const seconds = (new Date(at).getTime() - now) / 1000;
  if (Number.isNaN(seconds)) return String(at); // no time, e.g. what a manifest calls one
  if (Math.abs(seconds) < 5) return "just now";
  const [unit, size] = STEPS.find(([, size]) => Math.abs(seconds) >= size) || STEPS[5];
  return relative.format(Math.round(seconds / size), unit).replace(".", "");
}

export const exact = (at) => (Number.isNaN(new Date(at).getTime()) ? String(at) : new Date(at).toLocaleString());

export const shape = (dimensions) => `[${dimensions.map((d) => (d < 0 ? "any" : d)).join(", ")}]`;

const DIGEST = /^([0-9a-f]{12})[0-9a-f]{28,}/; // a long one is cut, as git does

// A recorded value by the unit at the end of its name, e.g. load_ms or size_bytes.
export function measured(name, value) {
  if (typeof value !== "number") return Array.isArray(value) ? value.join(", ") : value && typeof value === "object" ? Object.entries(value).map(([key, item]) => `${key} ${measured(key, item)}`).join(", ") : value == null ? "–" : DIGEST.test(value) ? value.replace(DIGEST, "$1…") : String(value);
  if (/(^|_)ms(_|$)/.test(name)) return ms(value);
  if (/_bytes$/.test(name)) return bytes(value);
  if (/_mb$/.test(name)) return `${value < 10 ? value.toFixed(1) : Math.round(value)} MB`;
  if (/_s$/.test(name)) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  return number(value);
}

export const words = (name) => name.replace(/_(ms|bytes|mb|s)(?=_|$)/g, "").replace(/_/g, " ");

// The name of an hour or day in UTC, e.g. 2026-11-22T08, as the reader's clock or calendar says it.
export function moment(name) {
  if (name.length === 10) return new Date(`${name}T00:00Z`).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
  return new Date(`${name}:00Z`).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}
