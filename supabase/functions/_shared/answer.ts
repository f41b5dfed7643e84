/**
 * The answers of login and self-description, in the words of the protocol (docs/protocol.md).
 *
 * `src/stack/auth/answer.rs` is the same for the embedded control plane; `tests/vectors/login.json`
 * holds both to the same answers.
 */

/** Browsers may call from any page: nothing here relies on cookies. */
const CORS = {
  "Access-Control-Allow-Origin": "*",
  "Access-Control-Allow-Headers": "authorization, x-client-info, apikey, content-type",
  "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
  "Access-Control-Max-Age": "86400",
};

/** A request that is refused: status, code, message and hint. */
export class Refusal extends Error {
  constructor(
    /** The HTTP status. */
    readonly status: number,
    /** A stable word of the protocol. */
    readonly code: string,
    /** A sentence for people. */
    message: string,
    /** What to do next. */
    readonly hint: string,
    /** Seconds to wait before the next attempt. */
    readonly retryAfterSecs?: number,
  ) {
    super(message);
    this.name = "Refusal";
  }

  /** Makes the HTTP response. */
  response(): Response {
    const response = json(this.status, {
      code: this.code,
      message: this.message,
      hint: this.hint,
    });
    if (this.retryAfterSecs !== undefined) {
      response.headers.set("Retry-After", String(this.retryAfterSecs));
    }
    return response;
  }
}

/** A request that makes no sense. */
export function badRequest(message: string): Refusal {
  return new Refusal(400, "bad_request", message, 'Send {"kind":"user"} or {"kind":"node"}.');
}

/** The body has too many bytes. */
export function longBody(): Refusal {
  return badRequest("The body of the login is longer than 16 KB.");
}

/** The body is not a login. */
export function badBody(): Refusal {
  return badRequest(
    "The body is not a login: it must be a JSON object with kind (user or node) and, for a new node, role, enrolment and name.",
  );
}

/** The request has a method that this address does not know. */
export function wrongRequest(expected: string): Refusal {
  return new Refusal(
    405,
    "bad_request",
    "This address does not know that method.",
    `Send it as ${expected}.`,
  );
}

/** The database, a setting or the signer fails. */
export function unavailable(): Refusal {
  return new Refusal(
    503,
    "unavailable",
    "The control plane cannot answer right now.",
    "Try again in a few seconds; if it lasts, tell the operator.",
    3,
  );
}

/** Makes a JSON response that nobody keeps. */
export function json(status: number, body: unknown): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: { ...CORS, "Content-Type": "application/json", "Cache-Control": "no-store" },
  });
}

/** Answers a browser that asks before it sends. */
export function preflight(): Response {
  return new Response(null, { status: 204, headers: CORS });
}

/** Answers with what `work` returns, or with the refusal that it throws. */
export async function answer(work: () => Promise<Response>): Promise<Response> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Refusal) {
      return error.response();
    }
    logError("the function failed", error);
    return unavailable().response();
  }
}

/** Writes a line to the function's log. Secrets and tokens never go there. */
export function logError(what: string, error?: unknown): void {
  const reason = error instanceof Error ? `${error.name}: ${error.message}` : error;
  // deno-lint-ignore no-console -- The log of an edge function is its console.
  console.error(JSON.stringify({ level: "error", what, reason }));
}
