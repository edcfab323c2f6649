// Takes back a Celery task that still waits.
import { argumentsOf, withRedis } from "./delayq/connection.js";
import { CeleryTasks } from "./delayq/celery.js";

const [id] = argumentsOf("node revoke.js <task id>", 1);

await withRedis(async (redis) => {
  const gone = await new CeleryTasks(redis).cancel(id);
  console.log(gone ? `${id} is revoked` : `${id} does not wait`);
});
