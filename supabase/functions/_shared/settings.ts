/**
 * The settings of the functions, from the environment.
 *
 * Supabase sets `SUPABASE_URL` and the keys. Ours have other names, because names that start with
 * `SUPABASE_` cannot be set:
 *
 * - `INFERNET_JWT_KEY`: a private ES256 key as JWK, imported into the project (`supabase gen
 *   signing-key --algorithm ES256`), or else
 * - `INFERNET_JWT_SECRET`: the project's JWT secret, for HS256. `JWT_SECRET` counts too: the
 *   self-hosted Supabase gives it to functions.
 * - `INFERNET_PUBLIC_URLS`: the base URLs that the control plane is published at, separated by
 *   commas. By default `SUPABASE_PUBLIC_URL` (self-hosted), or `SUPABASE_URL` where that is https
 *   (cloud).
 * - `INFERNET_NAME`: the control plane's name, where it is not the one in its settings.
 * - `INFERNET_CLIENT_ADDRESS_HEADER`: a header with the sender's address that a trusted proxy in
 *   front sets (`cf-connecting-ip`, `x-real-ip`, `x-forwarded-for`). Without it logins are limited
 *   by key only: the address of the connection is the gateway's.
 */

import { logError, unavailable } from "./answer.ts";

/** Reads one variable; in tests another source takes the place of the environment. */
export type Environment = (name: string) => string | undefined;

/** The real environment. */
export const environment: Environment = (name) => Deno.env.get(name);

/** Where and with which key calls to the database are made. */
export interface Database {
  /** The base URL of the API as seen from here. */
  readonly url: string;
  /** A key; a new one (`sb_…`) or a JWT. */
  readonly key: string;
}

/** How tokens are signed: with an imported key or with the project's secret. */
export type SigningKey =
  | { readonly alg: "ES256"; readonly jwk: Record<string, unknown> }
  | { readonly alg: "HS256"; readonly secret: string };

/** Returns where to call as `service_role`. */
export function serviceDatabase(environment: Environment): Database {
  const key = keyOf(environment, "SUPABASE_SECRET_KEYS", "SUPABASE_SERVICE_ROLE_KEY");
  return { url: apiUrl(environment), key };
}

/** Returns where to call as `anon`. */
export function anonymousDatabase(environment: Environment): Database {
  return { url: apiUrl(environment), key: publishableKey(environment) };
}

/** Returns the key that clients send with every request. */
export function publishableKey(environment: Environment): string {
  return keyOf(environment, "SUPABASE_PUBLISHABLE_KEYS", "SUPABASE_ANON_KEY");
}

/** Returns the base URLs that the control plane is published at, in one spelling. */
export function publicUrls(environment: Environment): string[] {
  const api = environment("SUPABASE_URL");
  const listed = environment("INFERNET_PUBLIC_URLS") ??
    environment("SUPABASE_PUBLIC_URL") ??
    (api?.startsWith("https://") ? api : undefined);
  const urls = (listed ?? "").split(/[\s,]+/).filter((url) => url !== "").map(normalised);
  if (urls.length === 0) {
    throw missing("INFERNET_PUBLIC_URLS");
  }
  return urls;
}

/** Returns what tokens are signed with. */
export function signingKey(environment: Environment): SigningKey {
  const key = environment("INFERNET_JWT_KEY");
  if (key) {
    return { alg: "ES256", jwk: privateJwk(key) };
  }
  const secret = environment("INFERNET_JWT_SECRET") ?? environment("JWT_SECRET");
  if (!secret) {
    throw missing("INFERNET_JWT_KEY or INFERNET_JWT_SECRET");
  }
  if (new TextEncoder().encode(secret).length < 32) {
    throw broken("INFERNET_JWT_SECRET", "it has fewer than 32 bytes");
  }
  return { alg: "HS256", secret };
}

/** Writes a base URL as `control::BaseUrl` does: no slash at the end. */
function normalised(text: string): string {
  const url = URL.parse(text);
  if (url === null || !["http:", "https:"].includes(url.protocol)) {
    throw broken("INFERNET_PUBLIC_URLS", "one of them is no http or https URL");
  }
  return `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
}

/** Reads a private JWK, alone, in a list or in a set. */
function privateJwk(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw broken("INFERNET_JWT_KEY", "it is not JSON");
  }
  const set = (value as { keys?: unknown } | null)?.keys ?? value;
  const jwk = Array.isArray(set) ? set[0] : set;
  if (jwk?.kty !== "EC" || jwk?.crv !== "P-256" || typeof jwk?.d !== "string") {
    throw broken("INFERNET_JWT_KEY", "it is no private P-256 JWK");
  }
  return jwk;
}

/** Reads the default of a map of new keys, or a single older key. */
function keyOf(environment: Environment, map: string, single: string): string {
  const keys = environment(map);
  if (keys) {
    try {
      const key = JSON.parse(keys).default;
      if (typeof key === "string" && key !== "") {
        return key;
      }
    } catch {
      throw broken(map, "it is not JSON");
    }
  }
  const key = environment(single);
  if (!key) {
    throw missing(`${map} or ${single}`);
  }
  return key;
}

function apiUrl(environment: Environment): string {
  const url = environment("SUPABASE_URL");
  if (!url) {
    throw missing("SUPABASE_URL");
  }
  return url.replace(/\/+$/, "");
}

/** The caller learns only that something is wrong, the log what. */
function missing(name: string) {
  logError(`the setting ${name} is missing`);
  return unavailable();
}

function broken(name: string, reason: string) {
  logError(`the setting ${name} cannot be used`, reason);
  return unavailable();
}
