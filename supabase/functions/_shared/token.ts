/** Signs the tokens of a login. `src/stack/auth/signer.rs` is the same for the embedded one. */

import { importJWK, type JWK, SignJWT } from "jose";

import type { SigningKey } from "./settings.ts";

/** How long a token is good for, in seconds. */
export const TOKEN_LIFETIME_SECS = 3600;

/** What a token says. Times are in seconds since 1970. */
export interface TokenClaims {
  readonly sub: string;
  readonly role: "authenticated";
  readonly pubkey: string;
  readonly kind: "user" | "node";
  readonly iat: number;
  readonly exp: number;
}

/** Signs claims with the project's secret or with an imported key. */
export async function signToken(key: SigningKey, claims: TokenClaims): Promise<string> {
  const token = new SignJWT({ ...claims });
  if (key.alg === "HS256") {
    return await token
      .setProtectedHeader({ alg: "HS256", typ: "JWT" })
      .sign(new TextEncoder().encode(key.secret));
  }
  const jwk = key.jwk as JWK;
  return await token
    .setProtectedHeader({ alg: "ES256", kid: jwk.kid, typ: "JWT" })
    .sign(await importJWK(jwk, "ES256"));
}
