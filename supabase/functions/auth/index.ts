/** `POST /functions/v1/auth`: a signed event becomes a token. */

import { handler } from "./handler.ts";

Deno.serve((request) => handler(request));
