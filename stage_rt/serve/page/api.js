// What the page asks of the server.

import { words } from "./words.js";

const RETRY = 1000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Refused(0, words.unreachable);
  }
  if (answer.ok) return answer;
  if (answer.status === 429) throw new Refused(429, words.busy(answer.headers.get("retry-after")));
  const told = (await answer.json().catch(() => ({}))).error ?? {};
  throw new Refused(answer.status, [told.problem ?? answer.statusText, told.remedy].filter(Boolean).join(": "));
}

export const read = async (path) => (await ask("GET", path)).json();
export const send = async (path, body) => (await ask("POST", path, body)).json();

export async function picture(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

// Calls `tell` with every state of a pair; the last one is one that stays.
export function follow(pair, tell) {
  let stream;
  let timer;
  function open() {
    stream = new EventSource(`/v1/pairs/${pair}/events`);
    stream.onmessage = (event) => {
      const state = JSON.parse(event.data);
      if (!["waiting", "painting"].includes(state.state)) stream.close();
      tell(state);
    };
    // The browser connects again by itself, but not to an answer that is no stream.
    stream.onerror = () => {
      if (stream.readyState === EventSource.CLOSED) timer = setTimeout(again, RETRY);
    };
  }
  async function again() {
    try {
      await read(`/v1/pairs/${pair}`);
      open();
    } catch (error) {
      if (error.status === 404) tell({ state: "gone" });
      else timer = setTimeout(again, RETRY);
    }
  }
  open();
  return () => {
    clearTimeout(timer);
    stream.close();
  };
}
