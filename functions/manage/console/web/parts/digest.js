// SHA-256 of a file: by the browser where the page is secure (HTTPS or this machine).
export async function sha256(file) {
  if (!crypto.subtle) throw new Error("this page is not secure, so the browser computes no digest: open it by HTTPS or on 127.0.0.1");
  const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
