// Requests that may have to wait: a busy server is asked again, and a token is asked for where one is needed.

import { Failure } from "./api.js";
import { hush, tell } from "./notice.js";
import { askForToken } from "./token.js";

const TRIES = 4;
const LONGEST_S = 10;

/** Run a request; while the server is busy, say so and try again after the time that it names. */
export async function patiently(request, signal) {
  for (let attempt = 1; ; attempt++) {
    try {
      const answer = await request();
      if (attempt > 1) hush();
      return answer;
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      if (failure.kind === "token") {
        await askForToken(failure.message === "wrong");
      } else if (failure.kind === "busy" && attempt < TRIES) {
        const seconds = Math.min(LONGEST_S, failure.retryAfter);
        tell(`${failure.message} Trying again in ${seconds} s.`);
        await pause(seconds, signal);
      } else {
        throw failure;
      }
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const clock = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(clock);
      reject(signal.reason);
    });
  });
}
