-- Tables and views of the exposed schemas ($1 text[]) with their columns.
-- Run with an empty search_path, so that type names come out qualified.
with recursive base_type as (
  select t.oid, coalesce(nullif(t.typbasetype, 0), t.oid) as base, t.typbasetype as next
  from pg_catalog.pg_type t
  union
  select b.oid, coalesce(nullif(t.typbasetype, 0), t.oid), t.typbasetype
  from base_type b join pg_catalog.pg_type t on t.oid = b.next
), final_type as (
  select oid, base from base_type where next = 0
), represented as (
  -- Domains whose values are converted on their way in or out.
  select d.oid
  from pg_catalog.pg_type d
  where d.typtype = 'd' and exists (
    select from pg_catalog.pg_cast c
    where c.castcontext = 'i' and c.castfunc <> 0
      and (c.castsource = d.oid and c.casttarget = 'pg_catalog.json'::regtype
        or c.casttarget = d.oid and c.castsource in ('pg_catalog.json'::regtype, 'pg_catalog.text'::regtype)))
)
select
  n.nspname::text as schema,
  c.relname::text as name,
  c.relkind in ('v', 'm') as is_view,
  coalesce(a.names, '{}') as column_names,
  coalesce(a.types, '{}') as column_types,
  coalesce(a.base_types, '{}') as base_types,
  coalesce(a.represented, false) as represented
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join lateral (
  select
    array_agg(a.attname::text order by a.attnum) as names,
    array_agg(a.atttypid::regtype::text order by a.attnum) as types,
    array_agg(f.base::regtype::text order by a.attnum) as base_types,
    bool_or(r.oid is not null) as represented
  from pg_catalog.pg_attribute a
  join final_type f on f.oid = a.atttypid
  left join represented r on r.oid = a.atttypid
  where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
) a on true
where c.relkind in ('r', 'v', 'm', 'f', 'p')
  and not c.relispartition
  and n.nspname = any ($1)
