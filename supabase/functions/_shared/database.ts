/** Calls of SQL functions, over PostgREST. */

import { logError, Refusal, unavailable } from "./answer.ts";
import type { Database } from "./settings.ts";

/** The most time for a call. */
const CALL_TIMEOUT_MS = 8_000;

/** What PostgREST says about a failure. */
interface Failure {
  readonly code?: unknown;
  readonly message?: unknown;
  readonly details?: unknown;
  readonly hint?: unknown;
}

/**
 * Calls a function of the API. Throws a {@link Refusal}: the one that SQL raised (`PTnnn`, the word
 * in its details), or that the control plane is unavailable.
 */
export async function callFunction(
  database: Database,
  name: string,
  parameters: Record<string, unknown>,
): Promise<unknown> {
  const headers: Record<string, string> = {
    "Content-Type": "application/json",
    apikey: database.key,
  };
  if (!database.key.startsWith("sb_")) {
    // An older key is a JWT, and goes where one belongs.
    headers["Authorization"] = `Bearer ${database.key}`;
  }
  let response: Response;
  let answer: unknown;
  try {
    response = await fetch(`${database.url}/rest/v1/rpc/${name}`, {
      method: "POST",
      headers,
      body: JSON.stringify(parameters),
      signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
    });
    answer = await response.json();
  } catch (error) {
    logError(`${name} did not answer`, error);
    throw unavailable();
  }
  if (!response.ok) {
    throw raised(answer as Failure) ?? failed(name, response.status, answer as Failure);
  }
  return answer;
}

/** Reads a refusal that SQL raised; `undefined` for any other failure. */
function raised(failure: Failure): Refusal | undefined {
  const { code, message, details, hint } = failure ?? {};
  const status = typeof code === "string" && /^PT4\d\d$/.test(code) ? Number(code.slice(2)) : 0;
  if (status === 0 || typeof details !== "string" || !/^[a-z_]+$/.test(details)) {
    return undefined;
  }
  return new Refusal(
    status,
    details,
    typeof message === "string" ? message : "",
    typeof hint === "string" ? hint : "",
    // SQL counts logins by the minute.
    status === 429 ? 60 : undefined,
  );
}

function failed(name: string, status: number, failure: Failure): Refusal {
  logError(`${name} failed`, `status ${status}, ${failure?.code}: ${failure?.message}`);
  return unavailable();
}
