// Does the jobs of a topic when they are due, until Ctrl-C or SIGTERM. To do one takes some seconds here, and says so.
import { setTimeout as sleep } from "node:timers/promises";

import { argumentsOf, withRedis } from "./delayq/connection.js";
import { Consumer } from "./delayq/consumer.js";
import { DelayQueue } from "./delayq/queue.js";

const usage = "node consume.js <topic> [seconds of work] [lease] [patience when it is stopped]";
const [topic, work = "1", lease = "30", patience = "10"] = argumentsOf(usage, 1);

async function handle(job, signal) {
  console.log(`${job.id}: begins, attempt ${job.attempts}, ${Date.now() - job.due} ms after its due time`);
  await sleep(Number(work) * 1000, undefined, { signal }); // the work; throws if the job is no longer ours
  console.log(`${job.id}: ${job.body}`);
}

await withRedis(async (redis) => {
  const options = { lease: Number(lease), patience: Number(patience) };
  const consumer = new Consumer(new DelayQueue(redis, topic), handle, options);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => consumer.stop());
  console.log(`consuming ${topic}`);
  await consumer.run();
  console.log("stopped");
});
