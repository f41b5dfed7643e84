/**
 * Self-description: what a client must know to join, given only the URL.
 *
 * All but the key and the URLs comes from `public.info()`. Anybody may ask (`verify_jwt = false`).
 */

import { answer, json, logError, preflight, unavailable, wrongRequest } from "../_shared/answer.ts";
import { callFunction } from "../_shared/database.ts";
import {
  anonymousDatabase,
  type Environment,
  environment as realEnvironment,
  publicUrls,
  publishableKey,
} from "../_shared/settings.ts";
import { VERSION } from "../_shared/version.ts";

/** Answers a request for `/functions/v1/info`. */
export function handler(
  request: Request,
  environment: Environment = realEnvironment,
): Response | Promise<Response> {
  if (request.method === "OPTIONS") {
    return preflight();
  }
  return answer(() => describe(request, environment));
}

async function describe(request: Request, environment: Environment): Promise<Response> {
  if (request.method !== "GET" && request.method !== "HEAD") {
    throw wrongRequest("GET");
  }
  const info = await callFunction(anonymousDatabase(environment), "info", {});
  if (typeof info !== "object" || info === null || Array.isArray(info)) {
    logError("info did not return an object");
    throw unavailable();
  }
  const name = environment("INFERNET_NAME");
  return json(200, {
    version: VERSION,
    ...info,
    ...(name ? { name } : {}),
    publishable_key: publishableKey(environment),
    urls: publicUrls(environment),
  });
}
