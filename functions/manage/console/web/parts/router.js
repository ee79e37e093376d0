// The address after # is the state of the console: it survives a reload and can be shared.
import { useLayoutEffect, useState } from "lib";

export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
}

export const link = (parts, query) => {
  const text = new URLSearchParams(Object.entries(query || {}).filter(([, value]) => value)).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
};

export const go = (parts, query) => { location.hash = link(parts, query); };

export function useRoute() {
  const [route, setRoute] = useState(() => parse(location.hash));
  useLayoutEffect(() => { // before the page is seen: a key may change the address at once
    const change = () => setRoute(parse(location.hash));
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  return route;
}
