// Preact with HTML templates: what every other file imports.
import { h, render, Fragment } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import htm from "htm";

export const html = htm.bind(h);

export { render, Fragment, useEffect, useMemo, useRef, useState };
