// Lanes that send a job to pg-boss, fetch one and complete it, one after another:
// how many a second are completed. Prints one line of JSON.

import { createRequire } from "node:module";
import { measure, number, required } from "./measure.mjs";

const require = createRequire(required("BENCH_MODULES") + "/");
const { PgBoss } = require("pg-boss");

const lanes = number("BENCH_LANES");
const queue = "trivial";
const boss = new PgBoss({ connectionString: required("BENCH_DATABASE_URL"), max: lanes });
boss.on("error", (error) => {
  console.error(error);
  process.exit(1);
});
await boss.start();
await boss.createQueue(queue);

let done = 0;
let stopped = false;
async function runLane() {
  while (!stopped) {
    await boss.send(queue, { number: done });
    for (const job of await boss.fetch(queue)) {
      await boss.complete(queue, job.id);
      done += 1;
    }
  }
}

const running = Array.from({ length: lanes }, runLane);
const measured = await measure(() => done);
stopped = true;
await Promise.all(running);
await boss.stop({ graceful: false });
console.log(JSON.stringify({ ...measured, total: done }));
process.exit(0);
