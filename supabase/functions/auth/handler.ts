/**
 * Login: checks a signed event, uses it up in SQL and signs a token.
 *
 * Whether the event is genuine, fresh and meant for this control plane is decided in
 * `_shared/login.ts`, whether its key may sign in by `public.consume_login`. The function is called
 * without a JWT (`verify_jwt = false`): it is where JWTs come from.
 */

import {
  answer,
  badBody,
  json,
  logError,
  longBody,
  preflight,
  unavailable,
  wrongRequest,
} from "../_shared/answer.ts";
import { callFunction } from "../_shared/database.ts";
import { checkLogin, type Login, LOGIN_BODY_LIMIT } from "../_shared/login.ts";
import {
  type Environment,
  environment as realEnvironment,
  publicUrls,
  serviceDatabase,
  signingKey,
} from "../_shared/settings.ts";
import { signToken, TOKEN_LIFETIME_SECS } from "../_shared/token.ts";

/** Answers a request for `/functions/v1/auth`. */
export function handler(
  request: Request,
  environment: Environment = realEnvironment,
): Response | Promise<Response> {
  if (request.method === "OPTIONS") {
    return preflight();
  }
  return answer(() => logIn(request, environment));
}

async function logIn(request: Request, environment: Environment): Promise<Response> {
  if (request.method !== "POST") {
    throw wrongRequest("POST");
  }
  const urls = publicUrls(environment).map((url) => `${url}/functions/v1/auth`);
  const key = signingKey(environment);
  const now = Math.floor(Date.now() / 1000);
  const login = await checkLogin(request.headers.get("Authorization"), await readBody(request), {
    urls,
    method: "POST",
    now,
  });
  const { sub, kind } = await consumeLogin(login, clientAddress(request, environment), environment);
  const expiresAt = now + TOKEN_LIFETIME_SECS;
  const token = await signToken(key, {
    sub,
    role: "authenticated",
    pubkey: login.publicKey,
    kind,
    iat: now,
    exp: expiresAt,
  });
  return json(200, {
    access_token: token,
    token_type: "bearer",
    expires_at: expiresAt,
    sub,
    kind,
  });
}

/** Uses the event up and returns who signed in. */
async function consumeLogin(
  login: Login,
  address: string | null,
  environment: Environment,
): Promise<{ sub: string; kind: "user" | "node" }> {
  const { kind, role, enrolment, name } = login.request;
  const row = await callFunction(serviceDatabase(environment), "consume_login", {
    p_event_id: login.eventId,
    p_public_key: login.publicKey,
    p_event_time: login.createdAt,
    p_kind: kind,
    p_role: role ?? null,
    p_enrolment: enrolment ?? null,
    p_name: name ?? null,
    p_address: address,
  }) as { sub?: unknown; kind?: unknown } | null;
  if (typeof row?.sub !== "string" || (row.kind !== "user" && row.kind !== "node")) {
    logError("consume_login did not return sub and kind");
    throw unavailable();
  }
  return { sub: row.sub, kind: row.kind };
}

/** Reads the body, and no more of it than a login may have. */
async function readBody(request: Request): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  try {
    for await (const chunk of request.body ?? []) {
      length += chunk.length;
      if (length > LOGIN_BODY_LIMIT) {
        break;
      }
      chunks.push(chunk);
    }
  } catch {
    throw badBody();
  }
  if (length > LOGIN_BODY_LIMIT) {
    throw longBody();
  }
  const body = new Uint8Array(length);
  let offset = 0;
  for (const chunk of chunks) {
    body.set(chunk, offset);
    offset += chunk.length;
  }
  return body;
}

/**
 * Returns the sender's address from the header that the operator trusts. Of a list the last entry
 * counts, which is the one that the proxy itself has added.
 */
function clientAddress(request: Request, environment: Environment): string | null {
  const name = environment("INFERNET_CLIENT_ADDRESS_HEADER");
  const last = name && request.headers.get(name)?.split(",").at(-1)?.trim();
  return last && /^[0-9a-fA-F.:]{2,45}$/.test(last) ? last : null;
}
