/** `GET /functions/v1/info`: what this control plane is. */

import { handler } from "./handler.ts";

Deno.serve((request) => handler(request));
