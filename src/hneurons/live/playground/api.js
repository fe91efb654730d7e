// The server's two paths that the page uses. The token, where one is asked for, lives in this tab's session storage.

const KEY = "hneurons.token";
let ask = async () => null;
let asking = null; // columns that are refused at once ask once

/** What to call for a token: (refused) -> Promise of a token, or of null when the user gives none. */
export function setTokenPrompt(prompt) {
  ask = prompt;
}

/** What went wrong, in a sentence for the user. `status` is 0 when no answer came. */
export class ApiError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // storage is switched off: ask every time
  }
}

async function newToken(refused) {
  asking ??= ask(refused !== null).finally(() => { asking = null; });
  const token = await asking;
  if (token === null) throw new ApiError("The server answers only with its token. Reload the page, or try again, to enter it.", 401);
  try {
    sessionStorage.setItem(KEY, token);
  } catch { /* as above */ }
  return token;
}

function seconds(header) {
  if (!header) return null;
  const value = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(value) ? Math.min(Math.max(Math.ceil(value), 1), 120) : null;
}

async function problem(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch { /* no JSON, or of another shape: the status must do */ }
  if (typeof said !== "string" || !said) said = `The server answered with status ${response.status}.`;
  return new ApiError(said, response.status, seconds(response.headers.get("retry-after")));
}

async function call(path, options = {}) {
  for (let token = stored(); ;) {
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server can’t be reached. Check that it still runs, then try again.");
    }
    if (response.status === 401) {
      const latest = stored(); // another request may have asked meanwhile
      token = latest && latest !== token ? latest : await newToken(token);
    } else if (response.ok) {
      return response;
    } else {
      throw await problem(response);
    }
  }
}

/** The card: name, layers, widths, neurons, threshold, verdict, limits. */
export async function getCard() {
  return (await call("hneurons/card")).json();
}

/** Choices of a streamed chat completion as they come, until the server says that it is done. */
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, stream: true }), signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(String(chunk.error.message || "The server gave up on this answer."), 500);
    if (chunk.choices?.[0]) yield chunk.choices[0];
  }
  throw new ApiError("The connection ended before the answer did. Check that the server still runs, then try again.");
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        return; // broken off; the caller misses the end
      }
      buffer += decoder.decode(part.value ?? new Uint8Array(), { stream: !part.done });
      const blocks = buffer.split(/\r?\n\r?\n/);
      buffer = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (part.done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
