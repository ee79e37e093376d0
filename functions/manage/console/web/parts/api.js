// Calls of the API under the console's own address, with the key of this browser tab.
import { useEffect, useRef, useState } from "lib";

const STORE = "mayfly.key";
export const base = new URL("../", location.href.split("#")[0]).href;
const listeners = new Set();

export const session = {
  get key() { return sessionStorage.getItem(STORE) || ""; },
  set key(key) {
    if (key) sessionStorage.setItem(STORE, key); else sessionStorage.removeItem(STORE);
    cache.clear();
  },
  onRefused(listener) { listeners.add(listener); return () => listeners.delete(listener); },
};

export class ApiError extends Error {
  constructor(status, body) {
    super((body.error && body.error.message) || body.error || `the service answered ${status}`); // below /v1 as OpenAI writes it
    Object.assign(this, { status, code: body.code, requestId: body.request_id, revision: body.revision, details: body.details });
  }
}

export async function call(method, path, body, options = {}) {
  const headers = { ...options.headers };
  if (session.key) headers.authorization = `Bearer ${session.key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const root = options.root || "api/v1";
  let response;
  try {
    response = await fetch(base + root + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: options.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { error: "the service cannot be reached: check the connection, then try again" });
  }
  const text = await response.text();
  let document = {};
  try { document = text ? JSON.parse(text) : {}; } catch { document = { error: `the service answered ${response.status} without JSON` }; }
  if (response.status === 401) listeners.forEach((listener) => listener(document.error));
  if (!response.ok) throw new ApiError(response.status, document);
  return options.raw ? { document, headers: response.headers } : document;
}

export const get = (path, options) => call("GET", path, undefined, options);

// Changes carry a key of their own, so that a repetition is answered and not done again.
export const change = (method, path, body) =>
  call(method, path, body, { headers: { "idempotency-key": crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}` } });

const cache = new Map();

// Load a path; keep showing the last answer while it loads again, and every so many seconds.
export function useLoad(path, { every = 0 } = {}) {
  const [state, setState] = useState({});
  const round = useRef(0);
  const load = async () => {
    const mine = ++round.current;
    if (!path) return;
    try {
      const data = await get(path);
      cache.set(path, data);
      if (mine === round.current) setState({ path, data, at: Date.now() });
    } catch (error) {
      if (mine === round.current) setState((before) => ({ path, data: before.path === path ? before.data : undefined, at: before.at, error }));
    }
  };
  useEffect(() => {
    load();
    const timer = every && setInterval(() => document.hidden || load(), every * 1000);
    return () => { round.current += 1; clearInterval(timer); };
  }, [path, every]);
  const fits = state.path === path;
  const data = fits && state.data ? state.data : cache.get(path);
  const error = fits ? state.error : undefined;
  return { data, error, loading: !data && !error, stale: Boolean(data && error), at: state.at, reload: load };
}

// Pages of a list: the first, and more on demand.
export function usePages(path, name) {
  const first = useLoad(path);
  const [more, setMore] = useState({ path, rows: [], cursor: undefined });
  const mine = more.path === path ? more : { path, rows: [], cursor: undefined };
  const cursor = mine.cursor === undefined ? first.data && first.data.next_cursor : mine.cursor;
  const next = async () => {
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(cursor)}`);
    setMore({ path, rows: [...mine.rows, ...page[name]], cursor: page.next_cursor });
  };
  const reload = () => { setMore({ path, rows: [], cursor: undefined }); return first.reload(); };
  return { ...first, rows: first.data ? [...first.data[name], ...mine.rows] : [], next: cursor ? next : null, reload };
}
