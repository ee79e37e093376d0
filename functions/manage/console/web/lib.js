// Preact with HTML templates: what every other file imports.
import { h, render, Component, Fragment } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import htm from "htm";

export const html = htm.bind(h);

export { render, Component, Fragment, useEffect, useLayoutEffect, useMemo, useRef, useState };
